-- records: what an owner's jobs above an id are, ascending. ARGV[5..]: owner, whether pending ones (1 or 0), whether
-- done ones, id, how many at most.
-- Replies for each its id and the fields of `told`. Changes nothing.
local owner, after, most = ARGV[5], '(' .. ARGV[8], ARGV[9]
local ids = {}
for n, list in ipairs({'p:', 'd:'}) do
    if ARGV[5 + n] == '1' then
        for _, id in ipairs(call('ZRANGEBYSCORE', P .. list .. owner, after, '+inf', 'LIMIT', 0, most)) do
            ids[#ids + 1] = id
        end
    end
end
table.sort(ids, function(a, b) return tonumber(a) < tonumber(b) end)
local answer = {}
for n = 1, math.min(#ids, tonumber(most)) do
    answer[n] = {ids[n], told(ids[n])}
end
return answer
