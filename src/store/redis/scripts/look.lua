-- look: the record of a job, for its owner. ARGV[5..]: owner, id, whether a log that outlives its result counts (1 or
-- 0).
-- Replies the fields of `told`, or nothing. Changes nothing.
local owner, id = ARGV[5], ARGV[6]
local j = job(id, 's', 'o', 'u', 'lg')
local has_log = ARGV[7] == '1' and tonumber(j.lg or 0) > 0
if j.o ~= owner or j.u or ((j.s == 'v' or j.s == 'c') and not has_log) or is_gone(owner, id) then return {} end
return told(id)
