-- reconcile: what the engine and an incarnation know of what runs there is made equal. ARGV[5..]: incarnation,
-- then as for reap the message, footprint and ending of a job that is interrupted, footprint and ending of one that was
-- cancelled, then `ID FENCE` for each job that it runs. It asks for none meanwhile.
-- Replies `stop`, then the ids of those that do not run any more as the engine sees it; or `fenced`. May happen twice.
local inc = ARGV[5]
if not is_living(inc) then return {'fenced'} end
local known, answer = {}, {'stop'}
for n = 11, #ARGV, 2 do
    local id = ARGV[n]
    known[id] = true
    local j = job(id, 's', 'F')
    if j.s ~= 'r' or j.F ~= ARGV[n + 1] then answer[#answer + 1] = id end
end
for _, id in ipairs(call('SMEMBERS', P .. 'run:' .. inc)) do
    if not known[id] then interrupt(inc, id, ARGV[6], ARGV[7], ARGV[8], {ARGV[9], ARGV[10]}) end
end
return answer
