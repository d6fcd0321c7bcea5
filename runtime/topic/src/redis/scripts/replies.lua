-- Replies that wait for callers of one node: what a lost push left behind.
local out = {}
for i = 1, num() do
  local request = take()
  local found = redis.call('GETDEL', T .. ':rp:' .. request)
  if not found then
    local place = redis.call('HGET', T .. ':dr', request)
    if place then
      local cut = string.find(place, '\0', 1, true)
      local record = redis.call('HGET', T .. ':dd:' .. string.sub(place, 1, cut - 1), string.sub(place, cut + 1))
      if record and #record > 64 then found = string.sub(record, 57) end
    end
  end
  out[i] = found or ''
end
return {'OK', out}
