if gone() then return {'GONE'} end
local out = {}
for _, stage in ipairs(redis.call('SMEMBERS', T .. ':topics')) do
  local c = redis.call('HGET', T .. ':t:' .. stage, 'c')
  local row = {stage}
  for i, n in ipairs({struct.unpack('<I8I8I8I8I8I8I8', c or string.rep('\0', 56))}) do row[i + 1] = int(n) end
  out[#out + 1] = row
end
return {'OK', out}
