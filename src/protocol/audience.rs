//! Who is meant by a role or a kind of device: two small questions, answered without allocation.
//!
//! Holds no list of users: those are the engine's business.

use super::ids::Role;

/// The class of a device: its id up to the first `-` or `.`, so that `phone-1` and `phone.work` are
/// both a `phone`. An id without either is its own class.
pub fn device_class(device: &str) -> &str {
    device.split(['-', '.']).next().unwrap_or(device)
}

/// True when `text` can be the class of a device: 1–64 of `[A-Za-z0-9_]`.
pub fn is_device_class(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Some of the roles that members have. Empty: nobody was asked for by role.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RoleSet(u8);

impl RoleSet {
    /// The roles that can be named, and the letter of each in the store.
    const NAMED: [(Role, char); 3] = [(Role::Member, 'm'), (Role::Moderator, 'o'), (Role::Owner, 'w')];

    const fn bit(role: Role) -> u8 {
        match role {
            Role::Banned => 0,
            Role::Member => 1,
            Role::Moderator => 2,
            Role::Owner => 4,
        }
    }

    /// With one more role. Banned is none that could be added.
    #[must_use]
    pub fn with(self, role: Role) -> Self {
        Self(self.0 | Self::bit(role))
    }

    /// True when no role is named.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// True when a user with `role` (none: not a member) is meant.
    pub fn contains(self, role: Option<Role>) -> bool {
        role.is_some_and(|role| self.0 & Self::bit(role) != 0)
    }

    /// One letter a role, for the store.
    pub fn letters(self) -> impl Iterator<Item = char> {
        Self::NAMED.into_iter().filter(move |(role, _)| self.contains(Some(*role))).map(|(_, letter)| letter)
    }

    /// The set of those letters.
    pub fn of_letters(text: &str) -> Option<Self> {
        text.chars().try_fold(Self::default(), |set, letter| {
            Self::NAMED.iter().find(|(_, known)| *known == letter).map(|(role, _)| set.with(*role))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_ends_at_the_first_separator() {
        for (device, class) in
            [("phone-1", "phone"), ("phone.a-b", "phone"), ("tv", "tv"), ("web_app-2", "web_app"), ("-x", "")]
        {
            assert_eq!(device_class(device), class);
        }
        assert!(is_device_class("phone") && !is_device_class("") && !is_device_class("a-b"));
    }

    #[test]
    fn a_set_of_roles_holds_what_was_put_in() {
        let set = RoleSet::default().with(Role::Owner).with(Role::Moderator).with(Role::Banned);
        assert!(set.contains(Some(Role::Owner)) && set.contains(Some(Role::Moderator)));
        assert!(!set.contains(Some(Role::Member)) && !set.contains(Some(Role::Banned)) && !set.contains(None));
        assert_eq!(RoleSet::of_letters(&set.letters().collect::<String>()), Some(set));
        assert!(RoleSet::default().is_empty() && RoleSet::of_letters("x").is_none());
    }
}
