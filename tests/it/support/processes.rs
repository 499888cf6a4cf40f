//! The process table, as far as the tests need it.

/// Returns the children of a process, zombies included.
pub fn children_of(pid: u32) -> Vec<u32> {
    processes().into_iter().filter(|p| p.parent == pid).map(|p| p.pid).collect()
}

/// Returns the processes of a group.
pub fn group_members(group: u32) -> Vec<u32> {
    processes().into_iter().filter(|p| p.group == group && p.state != "Z").map(|p| p.pid).collect()
}

/// A line of the process table.
pub struct Process {
    pub pid: u32,
    pub state: String,
    pub parent: u32,
    pub group: u32,
}

/// Returns the process table.
pub fn processes() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may contain anything.
        let mut rest = stat[stat.rfind(')')? + 1..].split_whitespace();
        let state = rest.next()?.to_owned();
        let parent = rest.next()?.parse().ok()?;
        let group = rest.next()?.parse().ok()?;
        Some(Process { pid, state, parent, group })
    })
    .collect()
}

/// Returns the processes that have this query in their environment: a script that was called with it, and everything
/// that it started, in whatever group. Zombies have no environment.
pub fn running_with_query(query: &str) -> Vec<u32> {
    let variable = format!("QUERY_STRING={query}");
    let has_it = |pid: u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&b| b == 0).any(|entry| entry == variable.as_bytes())
    };
    processes().into_iter().map(|p| p.pid).filter(|&pid| has_it(pid)).collect()
}
