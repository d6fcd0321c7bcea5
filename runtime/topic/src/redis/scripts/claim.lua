local token, ttl, born, partitions = take(), num(), num(), num()
local m = redis.call('HMGET', KEYS[1], 'id', 'gone', 'aside')
if m[2] then return {'GONE'} end
if not m[1] then return {'NEW'} end
if aside(m[3]) then return {'ASIDE'} end
local last = redis.call('HGET', T .. ':x', stage)
if last and born <= tonumber(last) and on('n') then return {'GONE'} end
local t = T .. ':t:' .. stage
local L = '<I8I8I4I4I4'
local born_now, generation, now_partitions, sealed, former = 0, 0, 0, 0, 0
local l = redis.call('HGET', t, 'l')
if l then born_now, generation, now_partitions, sealed, former = struct.unpack(L, l) end
if now_partitions == 0 then now_partitions = partitions end
local v = redis.call('HMGET', part, 'tok', 'exp', 'seq', 'last', 'ce', 'ci', 'un', 'seal', 'mu', 'mc')
if tonumber(p) >= now_partitions and not v[8] then return {'GONE'} end
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
l = struct.pack(L, math.max(born, born_now), generation, now_partitions, sealed, former)
redis.call('HSET', t, 'l', l)
return {'OK', v[3] or '0', v[4] or NONE, v[5] or '0', v[6] or '0', int(unclean), v[9] ~= '' and v[9] or NONE, v[10] or '0'}
