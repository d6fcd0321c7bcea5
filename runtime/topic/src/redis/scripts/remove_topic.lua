-- Removes one topic; of a life that is gone without looking at what is in it. `UNLINK` frees in the background, so this is short: eight
-- keys a partition, the state's buckets. What spilled is left to be swept in slices.
local node, stage, buckets, force, born, most = take(), take(), num(), take() == '1', num(), num()
if gone() and not force then return {'GONE'} end
local t = load(stage, {})
if not force then
  if redis.call('HEXISTS', KEYS[1], 'id') == 0 then return {'NEW'} end
  if is_removed(stage, born) then return {'OK'} end
  if held() then return {'HELD_STILL'} end
  local later = t.born > born
  if not later and t.c[1] + t.c[3] + t.c[5] + t.c[6] > 0 then return {'KEPT'} end
  local X = T .. ':x'
  redis.call('HSET', X, stage, int(born))
  if redis.call('HLEN', X) > most then
    local all, earliest = redis.call('HGETALL', X), 1
    for i = 3, #all, 2 do
      local a, b = tonumber(all[i + 1]), tonumber(all[earliest + 1])
      if a < b or (a == b and all[i] < all[earliest]) then earliest = i end
    end
    redis.call('HDEL', X, all[earliest])
  end
  if later then return {'OK'} end
end
local fields = redis.call('HKEYS', t.key)
for _, field in ipairs(fields) do
  local p = string.match(field, '^p(%d+)$')
  if p then
    local keys = {}
    for i, kind in ipairs({':p:', ':in:', ':k:', ':kl:', ':kd:', ':tm:', ':td:'}) do keys[i] = T .. kind .. stage .. ':' .. p end
    redis.call('UNLINK', unpack(keys))
    redis.call('ZREM', T .. ':ready', stage .. ':' .. p)
  end
end
local keys = {t.key, T .. ':d:' .. stage}
for b = 0, buckets - 1 do keys[#keys + 1] = T .. ':st:' .. stage .. ':' .. b end
redis.call('UNLINK', unpack(keys))
redis.call('SUNIONSTORE', T .. ':trash', T .. ':trash', T .. ':sx:' .. stage)
redis.call('UNLINK', T .. ':sx:' .. stage)
redis.call('SREM', T .. ':topics', stage)
redis.call('PUBLISH', T .. ':bell', node .. 't' .. stage .. '\n')
return {'OK'}
