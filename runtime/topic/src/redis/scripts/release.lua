if holds(take()) then redis.call('HDEL', part, 'tok', 'exp') end
return {'OK'}
