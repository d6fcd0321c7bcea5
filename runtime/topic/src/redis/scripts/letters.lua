-- Dead letters with an id above `after`, at most `page` of each stage.
local only, after, page = take(), take(), num()
if gone() then return {'GONE'} end
local stages = only ~= '' and {only} or redis.call('SMEMBERS', T .. ':topics')
local out = {}
for _, stage in ipairs(stages) do
  for _, entry in ipairs(redis.call('XRANGE', T .. ':d:' .. stage, '(' .. after .. '-0', '+', 'COUNT', page)) do
    out[#out + 1] = {string.match(entry[1], '^%d+'), stage, entry[2][2]}
  end
end
return {'OK', out}
