-- due: puts jobs whose delay is over into their lanes, and ends those that have their answer.
-- Replies `due`, then for each that ended: id, lane, ending, created, started, attempts.
enter_due()
local answer = {'due'}
for _, part in ipairs(end_due()) do answer[#answer + 1] = part end
return reply(answer)
