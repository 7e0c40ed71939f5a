//! The page and its sections as HTML. Whatever comes from the cluster is escaped by the templates.

use crate::Config;
use crate::view::View;
use askama::Template;
use jiff::Timestamp;

/// The style sheet, the script and the picture, compiled in.
pub(crate) const STYLE: &str = include_str!("../assets/style.css");
pub(crate) const SCRIPT: &str = include_str!("../assets/live.js");
pub(crate) const ICON: &str = include_str!("../assets/icon.svg");

#[derive(Template)]
#[template(path = "page.html")]
struct Page<'a> {
    config: &'a Config,
    view: &'a View,
    now: Timestamp,
}

/// The whole page.
pub(crate) fn render(config: &Config, view: &View, now: Timestamp) -> Result<String, askama::Error> {
    Page { config, view, now }.render()
}

/// A part of the page that is pushed by itself. Its id is the element's id and the event's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    Headline,
    Nodes,
    Pods,
    Services,
    Raft,
    Events,
}

macro_rules! sections {
    ($($name:ident $path:literal),*) => {
        $(
            #[derive(Template)]
            #[template(path = $path)]
            struct $name<'a> {
                view: &'a View,
                now: Timestamp,
            }
        )*
    };
}

sections!(Headline "headline.html", Nodes "nodes.html", Pods "pods.html", Services "services.html", Events "events.html");

#[derive(Template)]
#[template(path = "raft.html")]
struct Raft<'a> {
    view: &'a View,
}

impl Section {
    /// In the order of the page.
    pub(crate) const ALL: [Self; 6] =
        [Self::Headline, Self::Nodes, Self::Pods, Self::Services, Self::Raft, Self::Events];

    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::Headline => "headline",
            Self::Nodes => "nodes",
            Self::Pods => "pods",
            Self::Services => "services",
            Self::Raft => "raft",
            Self::Events => "events",
        }
    }

    /// Whether it says the same for both, ages apart.
    pub(crate) fn is_same(self, old: &View, new: &View) -> bool {
        match self {
            Self::Headline => old.headline == new.headline,
            Self::Nodes => old.nodes == new.nodes,
            Self::Pods => old.pods == new.pods,
            Self::Services => old.services == new.services,
            Self::Raft => old.raft == new.raft,
            Self::Events => old.events == new.events,
        }
    }

    pub(crate) fn render(self, view: &View, now: Timestamp) -> Result<String, askama::Error> {
        match self {
            Self::Headline => Headline { view, now }.render(),
            Self::Nodes => Nodes { view, now }.render(),
            Self::Pods => Pods { view, now }.render(),
            Self::Services => Services { view, now }.render(),
            Self::Raft => Raft { view }.render(),
            Self::Events => Events { view, now }.render(),
        }
    }
}
