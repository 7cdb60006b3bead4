//! What the log orders commands for.

/// A deterministic state machine in memory: the same commands in the same order give the same answers and the same
/// snapshot bytes on every node. It reads no clock and no randomness.
///
/// # Contract
/// * A command may be applied **twice** (a proposer that lost the answer asks again): the second time gives the same
///   answer and changes nothing that anybody can see.
/// * Nothing is trusted more because it came through the log: a command that makes no sense gets an answer that says so.
pub trait Machine: Send + Sync + 'static {
    /// Applies one command.
    fn apply(&mut self, command: &[u8]) -> Vec<u8>;

    /// The whole state, at most [`MAX_SNAPSHOT`](crate::MAX_SNAPSHOT) bytes.
    fn snapshot(&self) -> Vec<u8>;

    /// Becomes what [`Machine::snapshot`] wrote on some node.
    ///
    /// # Errors
    /// Says what is wrong with the bytes; the old state stays.
    fn install(&mut self, snapshot: &[u8]) -> Result<(), String>;

    /// What this node signs if another member asks it to vouch for a statement; `None` if the statement does not, or not
    /// yet, follow from the state. What is returned must say what it is about (a context), since it is signed with the
    /// node's own key.
    fn vouches(&self, _statement: &[u8]) -> Option<Vec<u8>> {
        None
    }

    /// Something that another member tells past the log: no part of the state. Must not block.
    fn notice(&self, _notice: &[u8]) {}
}
