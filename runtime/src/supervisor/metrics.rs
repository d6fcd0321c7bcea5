//! What is counted of modules in memory and of processes of tenants, for the metrics page.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::modules::Modules;

/// Reads the list when somebody asks.
pub struct ModuleMetrics(pub Arc<Modules>);

impl fmt::Debug for ModuleMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ModuleMetrics")
            .field(&self.0.residents().counts())
            .finish()
    }
}

impl Collector for ModuleMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (counts, processes) = (self.0.residents().counts(), self.0.processes().counts());
        let gauges = [
            ("modules_loaded", "Modules in memory", counts.modules, None),
            (
                "tenant_processes",
                "Processes of tenants that have their own",
                processes.processes,
                None,
            ),
            (
                "modules_memory",
                "Memory of the modules that are loaded",
                counts.bytes,
                Some(&Unit::Bytes),
            ),
            (
                "modules_memory_limit",
                "Memory that modules may have together",
                counts.budget_bytes,
                Some(&Unit::Bytes),
            ),
        ];
        for (name, help, value, unit) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?)?;
        }
        let totals = [
            (
                "tenant_processes_starts",
                "Processes of tenants that were started",
                processes.starts,
            ),
            (
                "tenant_processes_deaths",
                "Processes of tenants that died or had to be killed",
                processes.deaths,
            ),
            ("modules_loads", "Modules that were loaded", counts.loads),
            ("modules_evictions", "Modules that went to make room", counts.evictions),
            (
                "modules_idle",
                "Modules that went because nobody called them",
                counts.idle,
            ),
        ];
        for (name, help, value) in totals {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        Ok(())
    }
}
