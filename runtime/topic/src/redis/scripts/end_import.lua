local token = take()
if redis.call('HGET', KEYS[1], 'aside') ~= 'f' .. token then return {'FENCED'} end
redis.call('HSET', KEYS[1], 'aside', 'w')
return {'OK'}
