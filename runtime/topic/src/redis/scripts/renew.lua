local token, ttl = take(), num()
if not holds(token) then return {gone() and 'GONE' or 'FENCED'} end
redis.call('HSET', part, 'exp', int(now + ttl))
return {'OK'}
