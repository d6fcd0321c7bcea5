local stage = take()
if gone() then return {'GONE'} end
local l = redis.call('HGET', T .. ':t:' .. stage, 'l')
if not l then return {'NONE'} end
local _, generation, partitions, sealed, former = struct.unpack('<I8I8I4I4I4', l)
return {'OK', int(generation), partitions, sealed, former}
