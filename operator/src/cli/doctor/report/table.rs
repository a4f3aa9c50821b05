//! The report for people: findings in lines, each group as soon as its check has ended.

use std::io::{self, Write};

use super::{Finding, Report, counted};

/// The least width of the column of subjects. A longer subject widens the column from its line on, as earlier lines are
/// printed already.
const SUBJECT_WIDTH: usize = 34;

/// A table of findings that is printed while the checks run.
pub(in crate::cli::doctor) struct FindingTable<W> {
    to: W,
    width: usize,
    has_header: bool,
}

impl<W: Write> FindingTable<W> {
    pub(in crate::cli::doctor) fn new(to: W) -> Self {
        Self {
            to,
            width: SUBJECT_WIDTH,
            has_header: false,
        }
    }

    /// Prints findings; below those of a subject, such as a mirror, the advice about it with its check, each text once.
    pub(in crate::cli::doctor) fn print(&mut self, findings: &[Finding]) -> io::Result<()> {
        let mut lines = Vec::new();
        for group in findings.chunk_by(|one, next| one.subject == next.subject) {
            self.add_group(&mut lines, group)?;
        }
        self.to.write_all(&lines)?;
        // A pipe gets the lines now, too.
        self.to.flush()
    }

    /// Prints the sums of a report whose findings were printed.
    pub(in crate::cli::doctor) fn end(&mut self, report: &Report) -> io::Result<()> {
        let problems = counted(report.problems, "problem");
        let warnings = counted(report.warnings, "warning");
        writeln!(self.to, "\n{problems}, {warnings}")
    }

    fn add_group(&mut self, lines: &mut Vec<u8>, group: &[Finding]) -> io::Result<()> {
        let subjects = group.iter().map(|finding| finding.subject.chars().count());
        self.width = subjects.fold(self.width, usize::max);
        if !std::mem::replace(&mut self.has_header, true) {
            self.add_line(lines, ["RESULT", "CHECK", "SUBJECT", "MESSAGE"])?;
        }
        for finding in group {
            let (result, check) = (finding.result.name(), finding.check.to_string());
            self.add_line(lines, [result, &check, &finding.subject, &finding.message])?;
        }
        let mut given = Vec::new();
        for finding in group {
            let Some(advice) = finding.advice.as_deref().filter(|advice| !given.contains(advice)) else {
                continue;
            };
            self.add_line(
                lines,
                ["", &finding.check.to_string(), "", &format!("-> {advice}")],
            )?;
            given.push(advice);
        }
        Ok(())
    }

    fn add_line(&self, lines: &mut Vec<u8>, [result, check, subject, message]: [&str; 4]) -> io::Result<()> {
        let width = self.width;
        writeln!(lines, "{result:<7}  {check:<10}  {subject:<width$}  {message}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Check, Class};
    use super::*;

    /// A writer that counts flushes.
    #[derive(Default)]
    struct Pipe {
        text: String,
        flushes: usize,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.text.push_str(std::str::from_utf8(bytes).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            self.flushes += 1;
            Ok(())
        }
    }

    /// Each group of findings reaches the reader before the next check runs.
    #[test]
    fn findings_are_printed_as_they_come() {
        let mut table = FindingTable::new(Pipe::default());
        let server = Finding::ok(Check::ApiServer, "https://10.0.0.1", "is well");
        table.print(&[server]).unwrap();
        assert!(table.to.text.ends_with("is well\n"), "{}", table.to.text);
        table.print(&[]).unwrap();
        table
            .print(&[Finding::ok(Check::Mirror, "a/hub", "is ready")])
            .unwrap();
        assert_eq!((table.to.text.lines().count(), table.to.flushes), (3, 3));
    }

    /// The advice about a mirror follows all of its findings, and the same advice is given once.
    #[test]
    fn advice_is_grouped_by_mirror() {
        let problem =
            |subject: &str, message: &str| Finding::problem(Check::Mirror, Class::Other, subject, message);
        let findings = [
            problem("a/hub", "one").advice("do this"),
            problem("a/hub", "two").advice("do this"),
            problem("a/hub", "three").advice("do that"),
            problem("a/quay", "four").advice("do this"),
        ];
        let mut table = FindingTable::new(Pipe::default());
        table.print(&findings).unwrap();
        insta::assert_snapshot!(table.to.text, @r"
        RESULT   CHECK       SUBJECT                             MESSAGE
        PROBLEM  mirror      a/hub                               one
        PROBLEM  mirror      a/hub                               two
        PROBLEM  mirror      a/hub                               three
                 mirror                                          -> do this
                 mirror                                          -> do that
        PROBLEM  mirror      a/quay                              four
                 mirror                                          -> do this
        ");
    }
}
