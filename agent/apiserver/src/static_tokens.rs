//! Users by token, from a file of lines `token,user,uid,"group,group"`. Pure.

use crate::auth::User;
use std::collections::HashMap;
use std::sync::Arc;

/// Who comes with which token. Cheap to clone.
#[derive(Clone, Default)]
pub struct StaticTokens(Arc<HashMap<String, User>>);

impl std::fmt::Debug for StaticTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StaticTokens({})", self.0.len())
    }
}

impl StaticTokens {
    /// Reads them. The error names the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut users = HashMap::new();
        for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fields = fields(line).map_err(|why| format!("line {number}: {why}"))?;
            let [token, name, uid, groups @ ..] = fields.as_slice() else {
                return Err(format!(
                    "line {number}: it must have at least 3 columns (token, user name, user uid)"
                ));
            };
            if token.is_empty() || name.is_empty() {
                return Err(format!("line {number}: the token or the user name is empty"));
            }
            let groups = groups.first().map(String::as_str).unwrap_or_default();
            let groups =
                groups.split(',').map(str::trim).filter(|g| !g.is_empty()).map(str::to_owned).collect();
            let uid = Some(uid.clone()).filter(|uid| !uid.is_empty());
            let user = User { name: name.clone(), groups, uid, ..User::default() };
            if users.insert(token.clone(), user).is_some() {
                return Err(format!("line {number}: this token is there twice"));
            }
        }
        Ok(Self(Arc::new(users)))
    }

    /// Whose token this is.
    pub(crate) fn user(&self, token: &str) -> Option<&User> {
        self.0.get(token)
    }
}

/// The fields of one line (RFC 4180): a quoted one may hold commas, and quotes written twice.
fn fields(line: &str) -> Result<Vec<String>, &'static str> {
    let (mut all, mut rest) = (Vec::new(), line);
    loop {
        rest = rest.trim_start();
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].trim().to_owned(), &rest[end..])
            }
        };
        all.push(field);
        rest = match after.trim_start() {
            "" => return Ok(all),
            after => after.strip_prefix(',').ok_or("something follows a quoted field")?,
        };
    }
}

fn quoted_field(text: &str) -> Result<(String, &str), &'static str> {
    let (mut field, mut rest) = (String::new(), text);
    loop {
        let end = rest.find('"').ok_or("a quote is not closed")?;
        field.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                field.push('"');
                rest = after;
            }
            None => return Ok((field, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_users() {
        let text = "# who\ns3cret,eve,7,\"people,night shift\"\n\nplain,adam,,\nbare,root,0,system:masters\nshort,x,1\n";
        let tokens = StaticTokens::parse(text).unwrap();
        let eve = tokens.user("s3cret").unwrap();
        assert_eq!((eve.name.as_str(), eve.uid.as_deref()), ("eve", Some("7")));
        assert_eq!(eve.groups, ["people", "night shift"]);
        assert_eq!(tokens.user("plain").unwrap().uid, None);
        assert_eq!(tokens.user("bare").unwrap().groups, ["system:masters"]);
        assert!(
            tokens.user("short").is_some() && tokens.user("").is_none() && tokens.user("# who").is_none()
        );
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line() {
        for (text, why) in [
            ("ok,a,1\nx,y", "line 2: it must have"),
            (",a,1", "line 1: the token"),
            ("t,a,1\nt,b,2", "line 2: this token is there twice"),
            ("t,a,1,\"open", "line 1: a quote is not closed"),
            ("\"t\"x,a,1", "line 1: something follows"),
        ] {
            let said = StaticTokens::parse(text).unwrap_err();
            assert!(said.starts_with(why), "{said}");
        }
    }
}
