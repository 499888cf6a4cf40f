-- look: what a job is, for its owner. ARGV[5..]: owner, id, whether a kept log counts (1 or 0).
-- Replies the fields of `told`, or nothing. Changes nothing.
local owner, id = ARGV[5], ARGV[6]
local j = job(id, 's', 'o', 'u')
if j.o ~= owner or j.u or j.s == 'v' or (j.s == 'c' and ARGV[7] ~= '1') or is_gone(owner, id) then return {} end
return told(id)
