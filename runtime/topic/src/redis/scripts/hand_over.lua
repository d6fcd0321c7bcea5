-- One step over a seal. Moves are members and where each goes; then how many of the slice stayed, and whether it was the last.
local node, token, base, id, ttl = take(), take(), take(), take(), num()
local own, keeps = tonumber(p), on('o')
local v = redis.call('HMGET', part, 'tok', 'last', 'ce', 'seal')
if v[1] ~= token then return {gone() and 'GONE' or 'FENCED'} end
if v[2] == id then return {'OK', 0} end
if held() then return {'HELD_STILL'} end
if (v[2] or NONE) ~= base or not v[4] or tonumber(v[3] or '0') < tonumber(v[4]) then return {'STALE'} end
local t = load(stage, {own})
t.dirty, t.p[own].dirty = true, true
local touched = {}
local function target(q)
  load(stage, {q})
  t.p[q].dirty = true
  touched[q] = true
  return t.p[q]
end
local function key(kind, q) return T .. kind .. stage .. ':' .. q end
for _ = 1, num() do
  local member, q = take(), num()
  local ord, lane = string.sub(member, -8), string.sub(member, 1, -9)
  local record = redis.call('HGET', key(':k:', own), ord)
  redis.call('HDEL', key(':k:', own), ord)
  redis.call('ZREM', key(':kl:', own), member)
  redis.call('ZREM', key(':kd:', own), ord)
  local from, to = t.p[own], target(q)
  from[4], from[5], to[4], to[5] = from[4] - 1, from[5] - 1, to[4] + 1, to[5] + 1
  local new = struct.pack('>I8', redis.call('HINCRBY', key(':p:', q), 'ord', 1))
  if #redis.call('ZRANGEBYLEX', key(':kl:', q), '[' .. lane, '(' .. lane .. '\255', 'LIMIT', 0, 1) == 0 then
    redis.call('ZADD', key(':kd:', q), struct.unpack('<I8', record, 17), new)
  end
  redis.call('HSET', key(':k:', q), new, record)
  redis.call('ZADD', key(':kl:', q), 0, lane .. new)
end
for _ = 1, num() do
  local member, q = take(), num()
  local record = redis.call('HGET', key(':tm:', own), member)
  redis.call('HDEL', key(':tm:', own), member)
  redis.call('ZREM', key(':td:', own), member)
  local from, to = t.p[own], target(q)
  from[6] = from[6] - 1
  if not keeps then
    t.c[5] = t.c[5] - 1
  elseif redis.call('HSET', key(':tm:', q), member, record) == 1 then
    to[6] = to[6] + 1
  else
    t.c[5] = t.c[5] - 1
  end
  if keeps then redis.call('ZADD', key(':td:', q), struct.unpack('<I8', record, 17), member) end
end
local stayed, timers_stayed, done = num(), num(), take() == '1'
for q in pairs(touched) do
  redis.call('HSET', key(':p:', q), 'last', derived(id, q))
  -- What it got may lie before where its own hand-over stands.
  redis.call('HDEL', key(':p:', q), 'ho', 'ht')
end
redis.call('HSET', part, 'last', id, 'exp', int(now + ttl))
if done then
  redis.call('HDEL', part, 'seal', 'sn', 'ho', 'ht')
  t.sealed = t.sealed - 1
  touched[own] = true
else
  redis.call('HINCRBY', part, 'ho', stayed)
  redis.call('HINCRBY', part, 'ht', timers_stayed)
end
for q in pairs(touched) do
  -- A seal is work too.
  if redis.call('HEXISTS', key(':p:', q), 'seal') == 0 then set_ready(t, q) end
end
save()
return {'OK', t.sealed == 0 and ring_all(node, t) or 0}
