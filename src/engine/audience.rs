//! Who may see an entry or an ephemeral event, when not everybody in the room.
//!
//! Judged for each reader without allocation: by name, by the role they have in the room at that
//! moment, and by the class of the device that reads. The author sees everything of their own, on
//! every device. Who is shut out of a log entry gets a stand-in, so that seqs stay dense.

use std::sync::Arc;

use crate::protocol::audience::{RoleSet, device_class};
use crate::protocol::ids::{Role, UserId};

/// Who may see an entry, beside its author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// Everybody but these.
    Except(Box<[UserId]>),
    /// These.
    Only(Box<[UserId]>),
    /// Those who fit every part of it.
    Narrow(Box<Narrow>),
}

/// An audience by more than names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Narrow {
    /// By name: [`Audience::Except`] or [`Audience::Only`].
    pub users: Option<Audience>,
    /// Whoever has one of these roles in the room; empty: whatever the role.
    pub roles: RoleSet,
    /// Devices of these classes; empty: any.
    pub devices: Box<[Box<str>]>,
    /// See it whatever the rest says: the author of the message that an entry is about.
    pub also: Box<[UserId]>,
}

/// Who looks.
#[derive(Debug, Clone, Copy)]
pub struct Viewer<'a> {
    /// The user.
    pub user: &'a str,
    /// Their role in the room now.
    pub role: Option<Role>,
    /// The device; none: any of theirs.
    pub device: Option<&'a str>,
}

impl<'a> Viewer<'a> {
    /// A user on any of their devices.
    pub fn anywhere(user: &'a str, role: Option<Role>) -> Self {
        Self { user, role, device: None }
    }
}

impl Audience {
    /// True when `viewer` may see an entry of `author` with this audience.
    pub fn admits(&self, viewer: &Viewer<'_>, author: &str) -> bool {
        let named = |list: &[UserId]| list.iter().any(|user| user.as_str() == viewer.user);
        if viewer.user == author {
            return true;
        }
        match self {
            Self::Except(list) => !named(list),
            Self::Only(list) => named(list),
            Self::Narrow(narrow) => {
                let is_class = |device: &str| narrow.devices.iter().any(|class| **class == *device_class(device));
                named(&narrow.also)
                    || (narrow.users.as_ref().is_none_or(|users| users.admits(viewer, author))
                        && (narrow.roles.is_empty() || narrow.roles.contains(viewer.role))
                        && (narrow.devices.is_empty() || viewer.device.is_none_or(is_class)))
            }
        }
    }

    /// The same audience, and `user` in any case.
    #[must_use]
    pub fn and(&self, user: &UserId) -> Self {
        let with = |list: &[UserId]| list.iter().chain([user]).cloned().collect();
        match self {
            Self::Except(list) => Self::Except(list.iter().filter(|other| *other != user).cloned().collect()),
            Self::Only(list) if list.contains(user) => self.clone(),
            Self::Only(list) => Self::Only(with(list)),
            Self::Narrow(narrow) => Self::Narrow(Box::new(Narrow { also: with(&narrow.also), ..(**narrow).clone() })),
        }
    }

    /// As the store keeps it: `+bob,carol` only these; `-bob` all but these; then, each if need be,
    /// `|r=` roles, `|d=` classes of devices, `|a=` in any case. No name has `,` or `|`.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        match self {
            Self::Only(users) => push_list(&mut out, "+", users.iter().map(UserId::as_str)),
            Self::Except(users) => push_list(&mut out, "-", users.iter().map(UserId::as_str)),
            Self::Narrow(narrow) => {
                out.extend(narrow.users.as_ref().map(Self::to_text));
                out.push_str("|r=");
                out.extend(narrow.roles.letters());
                push_list(&mut out, "|d=", narrow.devices.iter().map(|class| &**class));
                push_list(&mut out, "|a=", narrow.also.iter().map(UserId::as_str));
            }
        }
        out
    }

    /// What [`Audience::to_text`] wrote.
    pub fn from_text(text: &str) -> Option<Arc<Self>> {
        let mut parts = text.split('|');
        let users = of_users(parts.next()?)?;
        let (Some(roles), Some(devices), Some(also)) = (parts.next(), parts.next(), parts.next()) else {
            return users.filter(|_| !text.contains('|')).map(Arc::new);
        };
        let narrow = Narrow {
            users,
            roles: RoleSet::of_letters(roles.strip_prefix("r=")?)?,
            devices: list(devices.strip_prefix("d=")?).map(Box::from).collect(),
            also: names(also.strip_prefix("a=")?)?,
        };
        Some(Arc::new(Self::Narrow(Box::new(narrow))))
    }
}

fn of_users(text: &str) -> Option<Option<Audience>> {
    Some(match text.split_at_checked(1) {
        None => None,
        Some(("+", rest)) => Some(Audience::Only(names(rest)?)),
        Some(("-", rest)) => Some(Audience::Except(names(rest)?)),
        Some(_) => return None,
    })
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').filter(|name| !name.is_empty())
}

fn names(text: &str) -> Option<Box<[UserId]>> {
    list(text).map(|name| UserId::parse(name).ok()).collect()
}

fn push_list<'a>(out: &mut String, start: &str, names: impl Iterator<Item = &'a str>) {
    out.push_str(start);
    for (at, name) in names.enumerate() {
        if at > 0 {
            out.push(',');
        }
        out.push_str(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(names: &[&str]) -> Box<[UserId]> {
        names.iter().map(|name| UserId::parse(name).unwrap()).collect()
    }

    #[test]
    fn an_audience_is_the_same_after_the_disk() {
        let moderators = RoleSet::default().with(Role::Moderator).with(Role::Owner);
        for audience in [
            Audience::Only(users(&["bob", "carol@x"])),
            Audience::Only(users(&[])),
            Audience::Except(users(&["a-b.c_d"])),
            Audience::Except(users(&[])),
            Audience::Narrow(Box::new(Narrow { roles: moderators, ..Narrow::default() })),
            Audience::Narrow(Box::new(Narrow {
                users: Some(Audience::Except(users(&["bob"]))),
                devices: ["phone".into(), "tv".into()].into(),
                also: users(&["ann"]),
                ..Narrow::default()
            })),
        ] {
            assert_eq!(*Audience::from_text(&audience.to_text()).unwrap(), audience, "{}", audience.to_text());
        }
        for bad in ["", "bob", "+b ob", "|r=x|d=|a=", "|r=m", "+bob|x"] {
            assert!(Audience::from_text(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn every_part_of_a_narrow_audience_must_fit_and_the_author_always_does() {
        let audience = Audience::Narrow(Box::new(Narrow {
            users: Some(Audience::Except(users(&["eve"]))),
            roles: RoleSet::default().with(Role::Moderator),
            devices: ["phone".into()].into(),
            also: Box::default(),
        }));
        let sees = |user, role, device| audience.admits(&Viewer { user, role, device }, "ann");
        let moderator = Some(Role::Moderator);
        assert!(sees("bob", moderator, Some("phone-1")) && sees("bob", moderator, None));
        assert!(!sees("bob", moderator, Some("tablet-1")) && !sees("bob", Some(Role::Owner), Some("phone-1")));
        assert!(!sees("eve", moderator, Some("phone")) && !sees("bob", None, Some("phone")));
        assert!(sees("ann", None, Some("tv")));
        let widened = audience.and(&UserId::parse("zoe").unwrap());
        assert!(widened.admits(&Viewer::anywhere("zoe", None), "root"));
        // Who shut themselves out sees what becomes of their message, and nobody else does for that.
        let widened = Audience::Except(users(&["zoe", "eve"])).and(&UserId::parse("zoe").unwrap());
        assert!(widened.admits(&Viewer::anywhere("zoe", None), "root"));
        assert!(!widened.admits(&Viewer::anywhere("eve", None), "root"));
    }
}
