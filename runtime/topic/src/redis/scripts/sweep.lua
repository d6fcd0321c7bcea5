local slice = num()
local ids = redis.call('SPOP', T .. ':trash', slice)
for i, id in ipairs(ids) do ids[i] = T .. ':s:' .. id end
if #ids > 0 then redis.call('UNLINK', unpack(ids)) end
return {'OK', #ids}
