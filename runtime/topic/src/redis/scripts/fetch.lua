-- What is due of retries and timers, and when the next falls due. The messages are read right behind this: what a script sees costs
-- it time by the byte.
local token, base, ce, ci = take(), take(), take(), take()
local messages, bytes, timers_max = num(), num(), num()
local v = redis.call('HMGET', part, 'tok', 'last', 'ce', 'ci', 'rn', 'seal', 'sn')
if v[1] ~= token then return {gone() and 'GONE' or 'FENCED'} end
if (v[2] or NONE) ~= base or (v[3] or '0') ~= ce or (v[4] or '0') ~= ci then return {'STALE'} end
local consumed = tonumber(v[5] or '0')
local found = redis.call('HMGET', T .. ':t:' .. stage, 'p' .. p, 'f', 'l', 'sk', 'sb')
local c = found[1]
local appended, parked, timers = 0, 0, 0
if c then
  local _
  _, appended, _, _, parked, timers = struct.unpack('<I8I8I8I8I8I8', c)
end
local seal
if found[3] then
  local _, _, partitions, sealed = struct.unpack('<I8I8I4I4I4', found[3])
  if tonumber(p) >= partitions and not v[6] then return {'GONE'} end
  if on('l') then
    if v[6] then
      seal = v[6]
      if tonumber(ce) >= tonumber(seal) then return {'SEAL', int(now)} end
      appended = tonumber(v[7])
    elseif sealed > 0 then
      return {'WAIT', int(now)}
    end
  end
end
local retries, due, early, next_due = {}, {}, {}, nil
local function later(key)
  local found = redis.call('ZRANGEBYSCORE', key, '(' .. int(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  if found[2] then
    local when = tonumber(found[2])
    if not next_due or when < next_due then next_due = when end
  end
end
if parked > 0 then
  local heads = T .. ':kd:' .. stage .. ':' .. p
  local ords = redis.call('ZRANGEBYSCORE', heads, '-inf', int(now), 'LIMIT', 0, math.min(messages, 4000))
  local size = 0
  for _, ord in ipairs(ords) do
    local record = redis.call('HGET', T .. ':k:' .. stage .. ':' .. p, ord)
    if not record then return {'DAMAGED', 'parked'} end
    size = size + struct.unpack('<I8', record, 25)
    if size > bytes and #retries > 0 then break end
    retries[#retries + 1] = string.sub(record, 33)
  end
  later(heads)
end
if timers > 0 then
  local times = T .. ':td:' .. stage .. ':' .. p
  local offset = 0
  while #due < messages do
    local page = redis.call('ZRANGEBYSCORE', times, '-inf', int(now), 'LIMIT', offset, 256)
    for _, member in ipairs(page) do
      if #due >= messages then break end
      local record = redis.call('HGET', T .. ':tm:' .. stage .. ':' .. p, member)
      if not record then return {'DAMAGED', 'timer'} end
      local lane = string.sub(member, 1, struct.unpack('<I4', record, 25))
      if parked == 0 or #redis.call('ZRANGEBYLEX', T .. ':kl:' .. stage .. ':' .. p, '[' .. lane, '(' .. lane .. '\255', 'LIMIT', 0, 1) == 0 then
        due[#due + 1] = string.sub(record, 29)
      end
    end
    if #page < 256 then break end
    offset = offset + 256
  end
  later(times)
  if timers > timers_max then
    local over = math.min(messages, timers - timers_max - redis.call('ZCOUNT', times, '-inf', int(now)))
    if over > 0 then
      for _, member in ipairs(redis.call('ZRANGEBYSCORE', times, '(' .. int(now), '+inf', 'LIMIT', 0, over)) do
        local record = redis.call('HGET', T .. ':tm:' .. stage .. ':' .. p, member)
        if not record then return {'DAMAGED', 'timer'} end
        early[#early + 1] = string.sub(record, 29)
      end
    end
  end
end
return {'OK', int(now), parked, next_due and int(next_due) or '', int(consumed), int(appended), found[2] or '0', seal or '', retries, due, early,
  int(math.max(0, tonumber(found[4] or '0'))), int(math.max(0, tonumber(found[5] or '0')))}
