//! Tables.

use crate::html::{escape, fixed, language};

/// A table. It scrolls sideways in its own box when it is wider than the page.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// What the table shows.
    pub caption: String,
    /// Column titles. A column is set right-aligned when its first filled cell is a number.
    pub head: Vec<String>,
    /// The rows; missing cells at a row's end are left empty.
    pub rows: Vec<Vec<Cell>>,
}

/// One cell of a [`Table`].
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// Words.
    Text(String),
    /// A number with that many decimals, right-aligned.
    Number {
        /// The number.
        value: f64,
        /// Digits after the point.
        decimals: usize,
    },
    /// A number with its confidence interval, right-aligned.
    Interval {
        /// The number.
        value: f64,
        /// The lower end.
        low: f64,
        /// The upper end.
        high: f64,
        /// Digits after the point.
        decimals: usize,
    },
    /// Nothing to tell; shown as a dash.
    Missing,
}

impl Cell {
    /// A [`Cell::Number`].
    pub fn number(value: f64, decimals: usize) -> Self {
        Self::Number { value, decimals }
    }

    fn is_number(&self) -> bool {
        matches!(self, Self::Number { .. } | Self::Interval { .. })
    }

    fn html(&self) -> String {
        match self {
            Self::Text(text) => escape(text),
            Self::Number { value, decimals } => fixed(*value, *decimals),
            Self::Interval { value, low, high, decimals } => format!(
                "{} <small>{} to {}</small>",
                fixed(*value, *decimals),
                fixed(*low, *decimals),
                fixed(*high, *decimals)
            ),
            Self::Missing => {
                "<span aria-hidden=\"true\">–</span><span class=\"quiet\">none</span>".into()
            }
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<usize> for Cell {
    fn from(count: usize) -> Self {
        Self::number(count as f64, 0)
    }
}

impl Table {
    pub(crate) fn html(&self, id: usize) -> String {
        let filled = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).find(|cell| **cell != Cell::Missing)
        };
        let numeric: Vec<bool> =
            (0..self.head.len()).map(|i| filled(i).is_some_and(Cell::is_number)).collect();
        let class = |i: usize| {
            if numeric.get(i).copied().unwrap_or(false) { " class=\"number\"" } else { "" }
        };
        let mut out = format!(
            "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-labelledby=\"t{id}\">\
             <table>\n<caption id=\"t{id}\">{}</caption>\n<thead><tr>",
            escape(&self.caption)
        );
        for (i, title) in self.head.iter().enumerate() {
            out += &format!("<th scope=\"col\"{}>{}</th>", class(i), escape(title));
        }
        out += "</tr></thead>\n<tbody>\n";
        for row in &self.rows {
            out += "<tr>";
            for i in 0..self.head.len().max(row.len()) {
                let cell = row.get(i);
                let inner = cell.map(Cell::html).unwrap_or_default();
                let spoken = match cell {
                    Some(Cell::Text(text)) => language(text),
                    _ => "",
                };
                out += &match i {
                    0 => format!("<th scope=\"row\"{}{spoken}>{inner}</th>", class(0)),
                    _ => format!("<td{}{spoken}>{inner}</td>", class(i)),
                };
            }
            out += "</tr>\n";
        }
        out + "</tbody>\n</table></div>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_set_right_and_rows_are_named() {
        let table = Table {
            caption: "Figures".into(),
            head: vec!["task".into(), "rows".into(), "exact".into()],
            rows: vec![
                vec!["name".into(), Cell::Missing, Cell::number(0.5, 1)],
                vec![
                    "draw".into(),
                    12345usize.into(),
                    Cell::Interval { value: 0.25, low: 0.2, high: 0.31, decimals: 2 },
                ],
                vec!["say".into()],
            ],
        };
        let html = table.html(3);
        assert!(html.contains("<th scope=\"col\" class=\"number\">rows</th>"));
        assert!(html.contains("<th scope=\"row\">name</th>"));
        assert!(html.contains("<td class=\"number\">12,345</td>"));
        assert!(html.contains("0.25 <small>0.20 to 0.31</small>"));
        assert_eq!(html.matches("<td").count(), 6);
    }
}
