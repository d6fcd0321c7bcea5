-- A slice of what waits at a partition's seal: its node takes the entries apart and says where each goes.
local token, base, id, most = take(), take(), take(), num()
local v = redis.call('HMGET', part, 'tok', 'last', 'ce', 'seal', 'ho', 'ht')
if v[1] ~= token then return {gone() and 'GONE' or 'FENCED'} end
local last = v[2] or NONE
if last == id then return {'DONE'} end
if last ~= base or not v[4] or tonumber(v[3] or '0') < tonumber(v[4]) then return {'STALE'} end
local _, _, partitions = struct.unpack('<I8I8I4I4I4', redis.call('HGET', T .. ':t:' .. stage, 'l'))
local function slice(order, records, from, record_of)
  local members = redis.call('ZRANGE', T .. order .. stage .. ':' .. p, from, from + most - 1)
  local out = {}
  for i, member in ipairs(members) do
    out[i] = {member, redis.call('HGET', T .. records .. stage .. ':' .. p, record_of(member))}
    if not out[i][2] then return nil end
  end
  return out
end
local parked = slice(':kl:', ':k:', tonumber(v[5] or '0'), function(member) return string.sub(member, -8) end)
local timers = slice(':td:', ':tm:', tonumber(v[6] or '0'), function(member) return member end)
if not parked or not timers then return {'DAMAGED', 'what waits'} end
return {'OK', partitions, parked, timers}
