//! Which requests are written down, and how much of each: `audit.k8s.io/v1` Policy. Pure.

use serde::Deserialize;

/// More rules than this are nobody's policy.
const MAX_RULES: usize = 1000;

/// How much of a request is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    /// Nothing.
    None,
    /// Who asked for what, and what became of it.
    Metadata,
    /// The same and what was sent.
    Request,
    /// The same and what was answered.
    RequestResponse,
}

impl Level {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// When in a request's life an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Stage {
    /// Before it is handled.
    RequestReceived,
    /// Its answer begins, and goes on: watches, logs, streams.
    ResponseStarted,
    /// Its answer has ended.
    ResponseComplete,
    /// Its handling broke off.
    Panic,
}

impl Stage {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// A policy. The first rule that fits a request decides; what fits none is not written down.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Policy {
    api_version: String,
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: serde::de::IgnoredAny,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<GroupResources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct GroupResources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

/// What rules look at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked<'a> {
    pub user: &'a str,
    pub groups: &'a [String],
    pub verb: &'a str,
    pub path: &'a str,
    /// The rest is about resources; empty: the request is for a path.
    pub plural: &'a str,
    pub group: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
}

/// What is to be done about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub level: Level,
    pub omit: Vec<Stage>,
    pub omit_managed_fields: bool,
}

impl Policy {
    /// Reads a policy as YAML or JSON.
    ///
    /// # Errors
    /// It is no policy, or one of its rules contradicts itself: says which.
    pub fn parse(text: &str) -> Result<Self, String> {
        let policy: Self = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
        if (policy.api_version.as_str(), policy.kind.as_str()) != ("audit.k8s.io/v1", "Policy") {
            return Err(format!("{} {} is not a Policy of audit.k8s.io/v1", policy.api_version, policy.kind));
        }
        if policy.rules.is_empty() || policy.rules.len() > MAX_RULES {
            return Err(format!("rules: between 1 and {MAX_RULES} are needed"));
        }
        for (i, rule) in policy.rules.iter().enumerate() {
            rule.check().map_err(|why| format!("rules[{i}].{why}"))?;
        }
        Ok(policy)
    }

    /// Who asked for what, of every request, once it is answered.
    #[must_use]
    pub fn metadata() -> Self {
        let rule = Rule {
            level: Level::Metadata,
            users: Vec::new(),
            user_groups: Vec::new(),
            verbs: Vec::new(),
            resources: Vec::new(),
            namespaces: Vec::new(),
            non_resource_urls: Vec::new(),
            omit_stages: Vec::new(),
            omit_managed_fields: None,
        };
        Self {
            api_version: "audit.k8s.io/v1".to_owned(),
            kind: "Policy".to_owned(),
            _metadata: serde::de::IgnoredAny,
            omit_stages: vec![Stage::RequestReceived],
            omit_managed_fields: false,
            rules: vec![rule],
        }
    }

    pub(crate) fn decide(&self, asked: &Asked<'_>) -> Decision {
        let Some(rule) = self.rules.iter().find(|rule| rule.fits(asked)) else {
            return Decision { level: Level::None, omit: Vec::new(), omit_managed_fields: false };
        };
        let omit = self.omit_stages.iter().chain(&rule.omit_stages).copied().collect();
        let omit_managed_fields = rule.omit_managed_fields.unwrap_or(self.omit_managed_fields);
        Decision { level: rule.level, omit, omit_managed_fields }
    }
}

impl Rule {
    fn check(&self) -> Result<(), String> {
        let of_resources = !self.resources.is_empty() || !self.namespaces.is_empty();
        if of_resources && !self.non_resource_urls.is_empty() {
            return Err("nonResourceURLs: a rule is about resources or about paths, not both".to_owned());
        }
        let bad = |url: &&String| *url != "*" && !url.starts_with('/');
        if let Some(url) = self.non_resource_urls.iter().find(bad) {
            return Err(format!("nonResourceURLs: {url:?} does not begin with \"/\""));
        }
        let inner = |url: &&String| url.trim_end_matches('*').contains('*') || url.ends_with("**");
        if let Some(url) = self.non_resource_urls.iter().find(inner) {
            return Err(format!("nonResourceURLs: {url:?} may have \"*\" at its end only"));
        }
        let named = |of: &&GroupResources| !of.resource_names.is_empty() && of.resources.is_empty();
        if self.resources.iter().any(|of| named(&of)) {
            return Err("resources: resourceNames need resources".to_owned());
        }
        Ok(())
    }

    fn fits(&self, asked: &Asked<'_>) -> bool {
        let any = |words: &[String], word: &str| words.is_empty() || words.iter().any(|own| own == word);
        if !any(&self.users, asked.user)
            || !any(&self.verbs, asked.verb)
            || !(self.user_groups.is_empty()
                || self.user_groups.iter().any(|group| asked.groups.contains(group)))
        {
            return false;
        }
        if !self.resources.is_empty() || !self.namespaces.is_empty() {
            return !asked.plural.is_empty()
                && any(&self.namespaces, asked.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|of| of.fits(asked)));
        }
        if !self.non_resource_urls.is_empty() {
            return asked.plural.is_empty()
                && self.non_resource_urls.iter().any(|url| leads(url, asked.path));
        }
        true
    }
}

impl GroupResources {
    fn fits(&self, asked: &Asked<'_>) -> bool {
        self.group == asked.group
            && (self.resources.is_empty() || self.resources.iter().any(|own| is_of(own, asked)))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|own| own == asked.name))
    }
}

/// `pods`, `pods/log`, `pods/*`, `*/scale`, `*`.
fn is_of(entry: &str, asked: &Asked<'_>) -> bool {
    match entry.split_once('/') {
        None => entry == "*" || (entry == asked.plural && asked.subresource.is_empty()),
        Some(("*", sub)) => sub == asked.subresource && !sub.is_empty(),
        Some((plural, "*")) => plural == asked.plural,
        Some((plural, sub)) => plural == asked.plural && sub == asked.subresource,
    }
}

fn leads(url: &str, path: &str) -> bool {
    url == path || url.strip_suffix('*').is_some_and(|start| path.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
metadata: {name: mine}
omitStages: [RequestReceived]
rules:
- level: None
  users: [system:kube-proxy]
  verbs: [watch]
  resources: [{group: '', resources: [endpoints, services]}]
- level: None
  userGroups: [system:authenticated]
  nonResourceURLs: ['/api*', /version]
- level: Request
  resources: [{resources: [configmaps], resourceNames: [seen]}]
  namespaces: [kube-system]
  omitManagedFields: true
- level: Metadata
  resources: [{resources: [secrets, pods/log, '*/scale']}, {group: apps}]
  omitStages: [ResponseStarted]
- level: RequestResponse
  namespaces: ['']
";

    fn level(asked: &Asked<'_>) -> Level {
        Policy::parse(SAMPLE).unwrap().decide(asked).level
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let groups = ["system:authenticated".to_owned()];
        let watch =
            |user| Asked { user, verb: "watch", plural: "services", namespace: "a", ..Asked::default() };
        assert_eq!(level(&watch("system:kube-proxy")), Level::None);
        let path = |path| Asked { groups: &groups, verb: "get", path, ..Asked::default() };
        assert_eq!(level(&path("/apis/apps")), Level::None);
        // Fits no rule: those that are left are about resources.
        assert_eq!(level(&path("/metrics")), Level::None);
        let map = |namespace, name| Asked {
            verb: "update",
            plural: "configmaps",
            namespace,
            name,
            ..Asked::default()
        };
        assert_eq!(level(&map("kube-system", "seen")), Level::Request);
        assert_eq!(level(&map("kube-system", "other")), Level::None);
        assert_eq!(level(&map("default", "seen")), Level::None);
        let part = |group, plural, subresource| Asked {
            group,
            plural,
            subresource,
            namespace: "default",
            ..Asked::default()
        };
        assert_eq!(level(&part("", "pods", "log")), Level::Metadata);
        assert_eq!(level(&part("", "pods", "")), Level::None);
        assert_eq!(level(&part("", "replicationcontrollers", "scale")), Level::Metadata);
        assert_eq!(level(&part("apps", "deployments", "status")), Level::Metadata);
        assert_eq!(level(&part("batch", "jobs", "")), Level::None);
        assert_eq!(level(&Asked { plural: "nodes", ..Asked::default() }), Level::RequestResponse);
        let decided = Policy::parse(SAMPLE).unwrap().decide(&part("", "secrets", ""));
        assert_eq!(decided.omit, [Stage::RequestReceived, Stage::ResponseStarted]);
        assert!(!decided.omit_managed_fields);
    }

    #[test]
    fn what_is_no_policy_says_where() {
        for (text, why) in [
            ("apiVersion: v1\nkind: Policy\nrules: [{level: None}]", "not a Policy"),
            ("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: []", "rules: between"),
            ("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: All}]", "unknown variant `All`"),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, user: [a]}]",
                "unknown field `user`",
            ),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, namespaces: [a], nonResourceURLs: [/a]}]",
                "rules[0].nonResourceURLs",
            ),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, nonResourceURLs: ['/*/a']}]",
                "at its end",
            ),
        ] {
            let error = Policy::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn without_a_policy_everything_is_noted_once() {
        let decided = Policy::metadata().decide(&Asked::default());
        assert_eq!((decided.level, decided.omit), (Level::Metadata, vec![Stage::RequestReceived]));
    }
}
