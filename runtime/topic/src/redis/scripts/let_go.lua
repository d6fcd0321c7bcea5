local token = take()
if gone() then return {'GONE'} end
local h = redis.call('HGET', KEYS[1], 'held')
if not h or string.sub(h, 9) ~= token then return {'STALE'} end
redis.call('HDEL', KEYS[1], 'held')
return {'OK'}
