-- Appends. A frame is one stream entry: its uid, where it stands in the partition's history (messages and bytes before it, its own),
-- and parts, each as a caller encoded it. A part's first messages may be skipped; `s` holds running sums of its messages' sizes, so that
-- a cursor inside of a frame counts exactly. A large frame is two entries, `<n>-0` with what commits look at and `<n>-1` with the
-- messages: each byte that a script sees costs it time.
local FRAME_MESSAGES, FRAME_BYTES, FRAME_SPLIT
local fresh, drawn
local pending = {}
local in_order = {}
local function line(t, p)
  local key = t.stage .. ':' .. p
  local frames = pending[key]
  if not frames then
    frames = {t = t, p = p}
    pending[key] = frames
    in_order[#in_order + 1] = frames
  end
  return frames
end
-- How many messages and bytes this script is about to append to a topic.
local function waiting(t) return t.more or 0, t.more_bytes or 0 end
local function add(t, p, skip, n, bytes, sums, body)
  local frames = line(t, p)
  local f = frames[#frames]
  if not f or f.n + n > FRAME_MESSAGES or f.z + bytes > FRAME_BYTES then
    f = {n = 0, z = 0, meta = {}, sums = {}, bodies = {}, size = 0}
    frames[#frames + 1] = f
  end
  f.n = f.n + n
  f.z = f.z + bytes
  f.meta[#f.meta + 1] = struct.pack('<I4I4I4', skip, n, bytes)
  local s, b = f.sums, f.bodies
  s[#s + 1], s[#s + 2] = 's', sums
  b[#b + 1], b[#b + 2] = 'b', body
  f.size = f.size + #body
  t.more = (t.more or 0) + n
  t.more_bytes = (t.more_bytes or 0) + bytes
end
-- Where messages without key go: the shortest inbox, all of one script together.
local function loose(t, partitions)
  if not t.loose then
    local best
    for p = 0, partitions - 1 do
      local len = t.p[p] and t.p[p][4] or 0
      if not best or len < best then t.loose, best = p, len end
    end
  end
  return t.loose
end
local function write_appends(node)
  if #in_order == 0 then return {} end
  local ready, rung, bells = {}, {}, {node}
  for _, frames in ipairs(in_order) do
    local t, p = frames.t, frames.p
    local v = t.p[p]
    if v[4] == v[5] then
      ready[#ready + 1] = 0
      ready[#ready + 1] = t.stage .. ':' .. p
    end
    for _, f in ipairs(frames) do
      drawn = drawn + 1
      local meta = struct.pack('<I8I8I4I4I4', v[2], v[3], f.n, f.z, #f.meta) .. table.concat(f.meta)
      local stream, id = T .. ':in:' .. t.stage .. ':' .. p, int(v[1] + 1)
      local head = f.sums
      if f.size <= FRAME_SPLIT then
        for i = 1, #f.bodies do head[#head + 1] = f.bodies[i] end
      end
      redis.call('XADD', stream, id .. '-0', 'u', fresh .. struct.pack('>I4', drawn), 'm', meta, unpack(head))
      if f.size > FRAME_SPLIT then redis.call('XADD', stream, id .. '-1', unpack(f.bodies)) end
      v[1], v[2], v[3], v[4] = v[1] + 1, v[2] + f.n, v[3] + f.z, v[4] + f.n
      t.c[1], t.c[2] = t.c[1] + f.n, t.c[2] + f.z
    end
    t.dirty, v.dirty = true, true
    rung[#rung + 1] = t.stage .. ':' .. p
    bells[#bells + 1] = 'b' .. t.stage .. ':' .. p .. '\n'
  end
  if #ready > 0 then redis.call('ZADD', T .. ':ready', unpack(ready)) end
  redis.call('PUBLISH', T .. ':bell', table.concat(bells))
  return rung
end
