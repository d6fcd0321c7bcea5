-- What every script begins with: its arguments in a row, the store's clock, which guards stand.
local T = string.sub(KEYS[1], 1, -3)
local at = 0
local function take() at = at + 1 return ARGV[at] end
local function num() at = at + 1 return tonumber(ARGV[at]) end
local clock = take()
local now
if string.byte(clock) == 61 then
  -- `=ms`: a test's clock. Else what a test adds to the server's, which is nothing outside of tests.
  now = tonumber(string.sub(clock, 2))
else
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(clock)
end
local removed = take()
local function on(guard) return not string.find(removed, guard, 1, true) end
local function int(n) return string.format('%.0f', n) end
local function gone() return redis.call('HGET', KEYS[1], 'gone') end
-- A cluster moves a slot key by key. A script that met a key that is gone already would end in its middle, so it asks first for one that
-- never is: while the slot moves, that is an error.
if take() == '1' and on('k') then
  local asked = redis.pcall('EXISTS', KEYS[1] .. ':none')
  if type(asked) == 'table' then return redis.error_reply('TRYAGAIN the slot is on its way to another server') end
end
-- Whether a backup reads the life, which must stay as it is. `held`: until when, and for whom. It is taken away by whoever passes it, so that
-- a backup that finds it knows that nobody did.
local function held()
  local h = redis.call('HGET', KEYS[1], 'held')
  if not h or not on('h') then return false end
  if struct.unpack('<I8', h) > now then return true end
  redis.call('HDEL', KEYS[1], 'held')
  return false
end
-- A life that was restored is set aside until its first use: `w`, or while it is not whole `f` and by which import.
local function aside(mark)
  if not mark then return false end
  if string.byte(mark) ~= 119 then return true end
  redis.call('HDEL', KEYS[1], 'aside')
  return false
end
local NONE = string.rep('\0', 16)
-- Variadic calls in slices: Lua's stack is bounded.
local function many(command, key, args)
  local i = 1
  while i <= #args do
    redis.call(command, key, unpack(args, i, math.min(i + 3999, #args)))
    i = i + 4000
  end
end
