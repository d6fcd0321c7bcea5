-- A partition's hash: tok, exp (the lease), seq, last, ce and ci (the cursor), rn and rb (messages and bytes ever consumed), un (unclean),
-- mu and mc (the attempt mark), ord (parked entries so far), lf (first dead letter of the last commit).
local stage, p = take(), take()
local part = T .. ':p:' .. stage .. ':' .. p
local function holds(token) return redis.call('HGET', part, 'tok') == token end
