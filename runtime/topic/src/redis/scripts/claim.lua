local token, ttl, born = take(), num(), num()
local m = redis.call('HMGET', KEYS[1], 'id', 'gone')
if m[2] then return {'GONE'} end
if not m[1] then return {'NEW'} end
local last = redis.call('HGET', T .. ':x', stage)
if last and born <= tonumber(last) and on('n') then return {'GONE'} end
local v = redis.call('HMGET', part, 'tok', 'exp', 'seq', 'last', 'ce', 'ci', 'un')
local unclean = tonumber(v[7] or '0')
if v[1] and v[1] ~= token then
  local left = tonumber(v[2]) - now
  if left > 0 then return {'HELD', int(left)} end
  unclean = unclean + 1
end
redis.call('HSET', part, 'tok', token, 'exp', int(now + ttl), 'un', unclean)
if not v[3] then
  redis.call('HSETNX', part, 'seq', 0)
  redis.call('HSETNX', T .. ':t:' .. stage, 'p' .. p, string.rep('\0', 48))
  redis.call('SADD', T .. ':topics', stage)
end
local t = T .. ':t:' .. stage
if tonumber(redis.call('HGET', t, 'b') or '0') < born then redis.call('HSET', t, 'b', int(born)) end
return {'OK', v[3] or '0', v[4] or NONE, v[5] or '0', v[6] or '0', int(unclean)}
