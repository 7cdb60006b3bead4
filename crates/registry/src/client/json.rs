//! Requests that have no method of their own: JSON in, JSON out.

use super::{Client, ClientError, Dialect, Sign, clock};
use pilotage_wire::registry::{
    FrameError, LENGTH_PREFIX, MAX_MESSAGE, NONCE_LEN, REQUEST_TYPES, Reply, Request,
};
use serde_json::Value;
use std::time::Instant;

impl Client {
    /// Sends one request as it is and gives the reply as it is.
    ///
    /// `sign`: the string of spec/registry.md §5.2 that the registry expects in `signature`, and the key. A registry that
    /// gives challenges gets a `proof` in its place, for the types that take one (§5.1). A connection that broke while
    /// idle is replaced once.
    ///
    /// # Errors
    /// See [`ClientError`]; a reply of the type `error` is [`ClientError::Refused`].
    pub fn call_json(
        &mut self,
        mut request: Value,
        sign: Option<(&str, Sign<'_>)>,
    ) -> Result<Value, ClientError> {
        let kind = kind(&request);
        let deadline = clock() + self.timeout;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let fresh = self.open(deadline)?;
            let result = self.json_once(kind, &mut request, sign, deadline);
            match result {
                Err(ClientError::Lost { .. }) if attempt == 1 && !fresh => {}
                other => return other,
            }
        }
    }

    fn json_once(
        &mut self,
        kind: &'static str,
        request: &mut Value,
        sign: Option<(&str, Sign<'_>)>,
        deadline: Instant,
    ) -> Result<Value, ClientError> {
        if let (Some((text, sign)), Value::Object(_)) = (sign, &*request) {
            // What another attempt has left; they are no arguments.
            set(request, "signature", None);
            set(request, "proof", None);
            let takes_proof =
                typed(request).is_some_and(|typed| typed.proof_message(&[0; NONCE_LEN]).is_some());
            let nonce = if takes_proof { self.nonce(kind, deadline)? } else { None };
            let proof = nonce.and_then(|nonce| typed(request)?.proof_message(&nonce));
            match proof {
                Some(message) => set(request, "proof", Some(sign(&message))),
                None => set(request, "signature", Some(sign(text.as_bytes()))),
            }
        }
        let frame = frame(kind, request)?;
        let json = self.transact(kind, &frame, deadline)?;
        let reply: Value =
            serde_json::from_slice(&json).map_err(|error| self.protocol(kind, error.to_string()))?;
        match reply.get("type").and_then(Value::as_str) {
            Some("error") => {
                let reason = reply.get("error").and_then(Value::as_str).unwrap_or("no reason given");
                Err(ClientError::Refused { request: kind, reason: reason.to_owned() })
            }
            Some(_) => Ok(reply),
            None => Err(self.protocol(kind, "it has no type".into())),
        }
    }

    /// A challenge, if this registry gives any.
    pub(super) fn nonce(
        &mut self,
        request: &'static str,
        deadline: Instant,
    ) -> Result<Option<[u8; NONCE_LEN]>, ClientError> {
        if self.dialect == Dialect::Reference {
            return Ok(None);
        }
        match self.exchange(&Request::Challenge, deadline)? {
            Reply::Challenge { nonce } => {
                self.dialect = Dialect::Pilotage;
                Ok(Some(nonce.0))
            }
            // The reference's text for an unknown type is free, so any error without our code means that. Never falls
            // back once challenges have worked: that would be a downgrade on an attacker's word.
            Reply::Error { code: None, .. } if self.dialect == Dialect::Unknown => {
                self.dialect = Dialect::Reference;
                Ok(None)
            }
            reply => Err(self.refusal_or_nonsense(request, reply)),
        }
    }
}

fn typed(request: &Value) -> Option<Request> {
    Request::parse(&serde_json::to_vec(request).ok()?).ok()
}

fn set(request: &mut Value, field: &str, signature: Option<[u8; 64]>) {
    if let Value::Object(fields) = request {
        match signature {
            Some(bytes) => {
                fields.insert(field.into(), pilotage_wire::registry::Base64(bytes).to_string().into())
            }
            None => fields.remove(field),
        };
    }
}

/// The type for messages; of a type that we do not know, just that.
fn kind(request: &Value) -> &'static str {
    let given = request.get("type").and_then(Value::as_str);
    REQUEST_TYPES.into_iter().find(|known| Some(*known) == given).unwrap_or("the request")
}

fn frame(kind: &'static str, request: &Value) -> Result<Vec<u8>, ClientError> {
    let too_long = |source| ClientError::TooLong { request: kind, source };
    let json = serde_json::to_vec(request).map_err(|_| too_long(FrameError::Encode))?;
    let len = json.len();
    if len > MAX_MESSAGE {
        return Err(too_long(FrameError::TooLong { len }));
    }
    let prefix = u32::try_from(len).map_err(|_| too_long(FrameError::TooLong { len }))?;
    let mut frame = Vec::with_capacity(LENGTH_PREFIX + len);
    frame.extend_from_slice(&prefix.to_be_bytes());
    frame.extend_from_slice(&json);
    Ok(frame)
}
