redis.call('HDEL', KEYS[1] .. ':nodes', take())
return {'OK'}
