-- Begins a life that is set aside; or, with nothing to fill it, takes one from whoever fills it.
local id, token, anew = take(), take(), take() == '1'
local m = redis.call('HMGET', KEYS[1], 'id', 'gone', 'aside')
if m[2] then return {'GONE'} end
if anew then
  if m[1] then return {'TAKEN'} end
  redis.call('HSET', KEYS[1], 'id', id)
elseif not m[3] then
  return {'TAKEN'}
end
redis.call('HSET', KEYS[1], 'aside', 'f' .. token)
return {'OK', redis.call('SMEMBERS', T .. ':topics')}
