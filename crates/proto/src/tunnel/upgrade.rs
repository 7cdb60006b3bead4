//! The post-quantum upgrade of a session, in a tunnel (spec/secure.md §9.5).

use std::time::Instant;

use pilotage_wire::s1::data::{HEADER_LEN, OVERHEAD};
use pilotage_wire::s1::frames::{Frame, HALF_KEY, Upgrade as UpgradeStep};

use super::{Route, Tunnel, TunnelCx};
use crate::s1::PostQuantum;

/// Room for the longest UPGRADE: type, part, half a key.
const UPGRADE_MAX: usize = 2 + HALF_KEY;

impl Tunnel {
    /// The upgrade begins, where it was agreed on.
    pub(super) fn begin_upgrade(&mut self, route: Route, cx: &TunnelCx<'_>) {
        let rtt = self.path.rtt.has_sample().then(|| self.path.rtt.smoothed());
        let Some(session) = self.secure.as_mut().and_then(|s| s.assoc.current_mut()) else { return };
        session.begin_upgrade(cx.now, rtt);
        if session.upgrade_is_due(cx.now) {
            self.send_upgrade(route, cx.now);
        }
    }

    /// Each step of the upgrade in a datagram of its own.
    fn send_upgrade(&mut self, route: Route, now: Instant) {
        let Some(session) = self.secure.as_ref().and_then(|s| s.assoc.current()) else { return };
        let mut frames = Vec::new();
        for step in session.upgrade_steps() {
            let mut bytes = vec![0; OVERHEAD + UPGRADE_MAX];
            if let Ok(len) = Frame::Upgrade(step).encode(&mut bytes[HEADER_LEN..HEADER_LEN + UPGRADE_MAX]) {
                frames.push((bytes, len));
            }
        }
        for (bytes, len) in frames {
            self.queue_sealed(route, bytes, len, now);
        }
    }

    /// UPGRADE of the peer. `false` if it must not say so.
    pub(crate) fn on_upgrade(&mut self, step: &UpgradeStep<'_>, route: Route, cx: &mut TunnelCx<'_>) -> bool {
        let now = cx.now;
        let Some((secured, _, mut s1)) = self.ready_secure(cx.secure, now) else { return true };
        let send = secured.assoc.on_upgrade_step(step, &mut s1);
        if send == Some(true) {
            self.send_upgrade(route, now);
        }
        send.is_some()
    }

    /// Nothing of an application leaves in a session that has to be upgraded and is not.
    pub(super) fn waits_for_upgrade(&self, cx: &TunnelCx<'_>) -> bool {
        let required = cx.secure.as_ref().is_some_and(|secure| secure.post_quantum == PostQuantum::Require);
        required && self.secure.as_ref().and_then(|s| s.assoc.current()).is_some_and(|s| !s.is_post_quantum())
    }

    /// What was not answered in time.
    pub(super) fn repeat_upgrade(&mut self, now: Instant) {
        let session = self.secure.as_mut().and_then(|s| s.assoc.current_mut());
        if session.is_some_and(|session| session.upgrade_is_due(now))
            && let Some(route) = self.path.route
        {
            self.send_upgrade(route, now);
        }
    }
}
