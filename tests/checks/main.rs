//! Checks this repository against itself: the architecture, the CRDs, the documentation and the chart.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in tests a panic is the report")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

mod architecture;
mod chart;
mod chart_access;
mod circles;
mod crds;
mod dashboard;
mod docs;
mod flags;
mod flux;
mod gitops;
mod notices;
mod testkit;
