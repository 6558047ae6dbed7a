//! Units made of the shipped one: the same settings around another program, or a few of them alone.

/// The lines of the section `[Service]` that set one of `keys`, in their order; all lines of a key that is set repeatedly.
pub(super) fn settings(unit: &str, keys: &[&str]) -> String {
    let lines = unit.lines().skip_while(|line| *line != "[Service]").skip(1);
    let section = lines.take_while(|line| !line.starts_with('['));
    let wanted = section.filter(|line| line.split_once('=').is_some_and(|(key, _)| keys.contains(&key)));
    wanted.map(|line| format!("{line}\n")).collect()
}

/// A unit that runs `program` once under those settings and nothing else; what it says goes to the file `out`.
pub(super) fn once(settings: &str, program: &str, out: &str) -> String {
    format!("[Service]\nType=oneshot\nExecStart={program}\nStandardOutput=truncate:{out}\n{settings}")
}

/// A drop-in for the shipped unit: another program in the place of its own, once. Everything else is as shipped.
pub(super) fn instead(program: &str, out: &str) -> String {
    format!(
        "[Service]\nType=oneshot\nRestart=no\nExecStartPre=\nExecStart=\nExecReload=\n\
         ExecStart={program}\nStandardInput=null\nStandardOutput=truncate:{out}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_taken_from_the_service_alone() {
        let unit = "[Unit]\nUser=no\n[Service]\nUser=vbr\n# User=x\nFilter=a\nFilter=~b\nCapabilities=\n[Install]\nUser=y\n";
        assert_eq!(settings(unit, &["User"]), "User=vbr\n");
        assert_eq!(settings(unit, &["Filter", "Capabilities"]), "Filter=a\nFilter=~b\nCapabilities=\n");
        assert_eq!(settings(unit, &["Missing"]), "");
    }
}
