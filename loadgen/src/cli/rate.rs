//! `--rate`: one number, or a staircase `FROM..TO`.

use std::str::FromStr;

use crate::plan::{STEPS_MAX, Traffic};

/// Messages a second as asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// The rate, or the first step's.
    pub from: f64,
    /// The last step's, when there are steps.
    pub to: Option<f64>,
}

/// Highest rate, messages a second.
const RATE_MAX: f64 = 10_000_000.0;

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.parse::<f64>() {
            Ok(rate) if rate > 0.0 && rate <= RATE_MAX => Ok(rate),
            _ => Err("a rate is above 0 and at most 10,000,000 messages a second; a staircase is FROM..TO".to_owned()),
        };
        match text.split_once("..") {
            Some((from, to)) => Ok(Self { from: number(from)?, to: Some(number(to)?) }),
            None => Ok(Self { from: number(text)?, to: None }),
        }
    }
}

impl Rate {
    /// What it means for the traffic.
    ///
    /// # Errors
    /// One sentence that names the flag.
    pub fn traffic(self, steps: Option<u32>) -> Result<Traffic, String> {
        let most = STEPS_MAX as u32;
        match (self.to, steps) {
            (None, None) => Ok(Traffic::Open { per_second: self.from }),
            (None, Some(_)) => Err("--steps needs --rate FROM..TO".to_owned()),
            (Some(to), steps) => match steps.unwrap_or(10) {
                steps if (2..=most).contains(&steps) => Ok(Traffic::Steps { from: self.from, to, steps }),
                _ => Err(format!("--steps must be 2 to {most}")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_staircases_are_told_apart() {
        let rate = |text: &str| text.parse::<Rate>();
        assert_eq!(rate("500").unwrap().traffic(None), Ok(Traffic::Open { per_second: 500.0 }));
        let stairs = rate("1000..20000").unwrap();
        assert_eq!(stairs.traffic(Some(4)), Ok(Traffic::Steps { from: 1_000.0, to: 20_000.0, steps: 4 }));
        assert_eq!(stairs.traffic(None), Ok(Traffic::Steps { from: 1_000.0, to: 20_000.0, steps: 10 }));
        for bad in ["0", "-1", "x", "1..", "..5", "1e9", "1..2..3", ""] {
            assert!(rate(bad).is_err(), "{bad}");
        }
        assert!(rate("5").unwrap().traffic(Some(3)).unwrap_err().contains("--steps"));
        assert!(stairs.traffic(Some(1)).is_err() && stairs.traffic(Some(51)).is_err());
    }
}
