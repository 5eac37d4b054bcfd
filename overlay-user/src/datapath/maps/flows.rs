//! The flows that the IP stack owns.

use overlay_common::schema::{Flow, FlowKey, FlowNews, MAX_FLOWS, NEWEST_FLOW, NO_FLOW_SINCE};

use super::super::Error;
use super::super::family::UserFamily;
use super::{Maps, failed, missing_is_none};

impl<F: UserFamily> Maps<F> {
    /// The flows that the IP stack owns, and the time at which each was last seen.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn flows(&self) -> Result<Vec<(FlowKey<F>, Flow)>, Error> {
        // The walk restarts when the entry at its position is evicted, so a limit makes it end.
        self.flows
            .iter()
            .take(2 * MAX_FLOWS as usize)
            .collect::<Result<_, _>>()
            .map_err(failed("dump", F::MAPS.flows))
    }

    /// Adds a flow that the IP stack owns.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn add_flow(&mut self, key: &FlowKey<F>, flow: Flow) -> Result<(), Error> {
        self.look_for_flows()?;
        self.flows
            .insert(key, flow, 0)
            .map_err(failed("update", F::MAPS.flows))
    }

    /// The time at which a flow was last seen; `None` where the IP stack does not own the flow.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn flow(&self, key: &FlowKey<F>) -> Result<Option<Flow>, Error> {
        missing_is_none(self.flows.get(key, 0)).map_err(failed("read", F::MAPS.flows))
    }

    /// Removes a flow.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn remove_flow(&mut self, key: &FlowKey<F>) -> Result<(), Error> {
        missing_is_none(self.flows.remove(key)).map_err(failed("delete from", F::MAPS.flows))?;
        Ok(())
    }

    /// Whether the IP stack owns any flow. Where the stack owns none, the programs skip the look-up
    /// until a flow is added.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn has_flows(&mut self) -> Result<bool, Error> {
        // The order matters: a flow that is added after the first look makes the two values differ.
        let newest = self
            .flow_news
            .get(&NEWEST_FLOW, 0)
            .map_err(failed("read", F::MAPS.flow_news))?;
        let any = self.flows.keys().next().transpose();
        if any.map_err(failed("dump", F::MAPS.flows))?.is_some() {
            return Ok(true);
        }
        self.flow_news
            .set(NO_FLOW_SINCE, newest, 0)
            .map_err(failed("update", F::MAPS.flow_news))?;
        Ok(false)
    }

    /// Makes the programs look up flows until [`Maps::has_flows`] finds none: before flows are
    /// added, and when programs that do not report new flows may have added some.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn look_for_flows(&mut self) -> Result<(), Error> {
        let never = FlowNews { at_ns: u64::MAX };
        self.flow_news
            .set(NO_FLOW_SINCE, never, 0)
            .map_err(failed("update", F::MAPS.flow_news))
    }
}
