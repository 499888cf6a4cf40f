-- collect: takes a result into delivery. ARGV[5..]: incarnation, owner, id.
-- Replies `done ID FENCE BYTES`, `pending`, `unknown` or `fenced`.
local inc, owner, id = ARGV[5], ARGV[6], ARGV[7]
if not is_living(inc) then return reply({'fenced'}) end
local j = job(id, 's', 'o', 'u', 'b')
if j.o ~= owner or j.u or is_gone(owner, id) then return reply({'unknown'}) end
if j.s == 'q' or j.s == 'w' or j.s == 'r' then return reply({'pending'}) end
if j.s ~= 'd' then return reply({'unknown'}) end
local number = fence()
call('HSET', P .. 'j:' .. id, 's', 'v', 'i', inc, 'F', number)
call('ZREM', P .. 'd:' .. owner, id)
call('ZREM', P .. 'e', id)
call('ZADD', P .. 'v:' .. owner, id, id)
call('SADD', P .. 'dlv:' .. inc, id)
return reply({'done', id, number, j.b})
