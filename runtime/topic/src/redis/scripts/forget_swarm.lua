-- Marks a life as gone, which is what everybody sees; its keys follow.
local node, if_empty = take(), take() == '1'
if gone() then return {'OK', redis.call('SMEMBERS', T .. ':topics')} end
local stages = redis.call('SMEMBERS', T .. ':topics')
if if_empty then
  for _, stage in ipairs(stages) do
    local c = load(stage, {}).c
    if c[1] + c[3] + c[6] > 0 then return {'KEPT'} end
  end
end
redis.call('HSET', KEYS[1], 'gone', 1)
redis.call('PUBLISH', T .. ':bell', node .. 'g\n')
return {'OK', stages}
