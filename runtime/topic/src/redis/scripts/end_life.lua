for _, subject in ipairs(redis.call('SMEMBERS', T .. ':subjects')) do redis.call('UNLINK', T .. ':dd:' .. subject, T .. ':dx:' .. subject) end
redis.call('UNLINK', T .. ':subjects', T .. ':dr', T .. ':dm', T .. ':se', T .. ':sx', T .. ':ready', T .. ':topics', T .. ':trash', T .. ':x')
redis.call('HDEL', KEYS[1], 'id', 'letter', 'spill', 'held', 'aside')
return {'OK'}
