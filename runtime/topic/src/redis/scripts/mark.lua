local token, uid = take(), take()
if not holds(token) then return {gone() and 'GONE' or 'FENCED'} end
local v = redis.call('HMGET', part, 'mu', 'mc')
local times = v[1] == uid and tonumber(v[2]) + 1 or 1
redis.call('HSET', part, 'mu', uid, 'mc', times)
return {'OK', times}
