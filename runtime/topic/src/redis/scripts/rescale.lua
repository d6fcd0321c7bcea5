-- Another number of partitions: what is there is sealed, appends go by the new number from now on.
local node, stage, born, count, id = take(), take(), num(), num(), take()
local m = redis.call('HMGET', KEYS[1], 'id', 'gone')
if m[2] then return {'GONE'} end
if not m[1] then return {'NEW'} end
if held() then return {'HELD_STILL'} end
if is_removed(stage, born) then return {'GONE'} end
local t = load(stage, {})
if t.sealed > 0 then return {'BUSY'} end
local first = t.partitions == 0
if not used(t, born, count) then
  if first then
    t.dirty = true
    save()
  end
  return {'SAME'}
end
t.former, t.partitions, t.generation, t.dirty = t.partitions, count, t.generation + 1, true
local parts = {}
for _, field in ipairs(redis.call('HKEYS', t.key)) do
  local p = string.match(field, '^p(%d+)$')
  if p then parts[#parts + 1] = tonumber(p) end
end
load(stage, parts)
for _, p in ipairs(parts) do
  local v, key = t.p[p], T .. ':p:' .. stage .. ':' .. p
  redis.call('HSET', key, 'last', derived(id, p))
  if v[4] > 0 or v[6] > 0 then
    redis.call('HSET', key, 'seal', int(v[1]), 'sn', int(v[2]))
    redis.call('ZADD', T .. ':ready', 0, stage .. ':' .. p)
    t.sealed = t.sealed + 1
  end
end
save()
return {'OK', ring_all(node, t)}
