local token, node = take(), take()
if holds(token) then
  redis.call('HDEL', part, 'tok', 'exp')
  -- Whoever should own it waits for the lease to run out otherwise.
  local when = redis.call('ZSCORE', T .. ':ready', stage .. ':' .. p)
  if when and tonumber(when) <= now then redis.call('PUBLISH', T .. ':bell', node .. 'b' .. stage .. ':' .. p .. '\n') end
end
return {'OK'}
