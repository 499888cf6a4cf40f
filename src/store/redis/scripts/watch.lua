-- watch: requests a message on the channel `bell` at the end of a pending job. ARGV[5..]: owner, id.
-- Replies `pending`, or `over` if it is done or unknown. May happen twice.
local owner, id = ARGV[5], ARGV[6]
local j = job(id, 's', 'o', 'u')
local is_pending = j.s == 'q' or j.s == 'w' or j.s == 'r'
if j.o ~= owner or j.u or not is_pending or is_gone(owner, id) then return {'over'} end
call('HSET', P .. 'j:' .. id, 'w', '1')
return {'pending'}
