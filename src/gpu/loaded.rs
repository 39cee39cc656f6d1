//! What a device has loaded, whatever the driver: units, and the kernels found in them.

use super::Unit;
use super::launch::Kernel;
use candle_core::Result;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A driver's modules and functions.
pub(super) struct Loaded<M, F>(Mutex<Tables<M, F>>);

struct Tables<M, F> {
    units: HashMap<Unit, M>,
    kernels: HashMap<Kernel, F>,
}

impl<M, F: Clone> Loaded<M, F> {
    pub(super) fn new() -> Self {
        let (units, kernels) = (HashMap::new(), HashMap::new());
        Self(Mutex::new(Tables { units, kernels }))
    }

    /// The kernel; its unit is loaded when it is first asked for. What fails is tried again next time.
    pub(super) fn kernel(
        &self,
        kernel: Kernel,
        load: impl FnOnce(Unit) -> Result<M>,
        find: impl FnOnce(&M, &'static str) -> Result<F>,
    ) -> Result<F> {
        let Tables { units, kernels } = &mut *lock(&self.0);
        if let Some(function) = kernels.get(&kernel) {
            return Ok(function.clone());
        }
        let unit = match units.entry(kernel.unit) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(place) => place.insert(load(kernel.unit)?),
        };
        let function = find(unit, kernel.name)?;
        kernels.insert(kernel, function.clone());
        Ok(function)
    }
}

/// A panic elsewhere leaves these tables whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::launch::Kernels;
    use candle_core::{DType, bail};

    #[test]
    fn units_are_loaded_once_when_they_are_wanted() {
        let loaded = Loaded::new();
        let (mut loads, mut finds) = (Vec::new(), Vec::new());
        let mut get = |kernel: Kernel, works: bool| {
            let load = |unit| {
                loads.push(unit);
                if works {
                    Ok(unit)
                } else {
                    bail!("no compiler")
                }
            };
            let find = |&unit: &Unit, name| {
                finds.push(name);
                Ok((unit, name))
            };
            loaded.kernel(kernel, load, find)
        };
        let [f32, f16] = [DType::F32, DType::F16].map(|dtype| Kernels::of(dtype).unwrap());
        assert!(get(f32.slices.usual, false).is_err());
        let asked = [
            f32.slices.usual,
            f32.look,
            f32.slices.usual,
            f16.look,
            f16.few_rows.draw,
        ];
        for kernel in asked {
            assert_eq!(get(kernel, true).unwrap(), (kernel.unit, kernel.name));
        }
        let (f32, f16) = (Unit::Samplers("f32"), Unit::Samplers("f16"));
        assert_eq!(loads, [f32, f32, f16]);
        assert_eq!(finds, ["slices_f32", "look_f32", "look_f16", "draw_f16"]);
    }
}
