local node = take()
if gone() then return {'GONE'} end
if held() then return {'HELD_STILL'} end
local ids = {}
for i = 1, num() do ids[i] = take() .. '-0' end
local discarded, rooms = 0, {}
for _, stage in ipairs(redis.call('SMEMBERS', T .. ':topics')) do
  local t = load(stage, {})
  local key = T .. ':d:' .. stage
  if t.c[6] > 0 then
    for _, id in ipairs(ids) do
      local entry = redis.call('XRANGE', key, id, id)[1]
      if entry then
        redis.call('XDEL', key, id)
        t.c[6], t.c[7] = t.c[6] - 1, t.c[7] - #entry[2][2]
        t.dirty = true
        discarded = discarded + 1
      end
    end
    if frees(t) then
      t.dirty = true
      rooms[#rooms + 1] = stage
      redis.call('PUBLISH', T .. ':bell', node .. 'r' .. stage .. '\n')
    end
  end
end
save()
return {'OK', discarded, rooms}
