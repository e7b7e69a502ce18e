//! What every test stands on: a throwaway CA, a scripted upstream that checks signatures by its own few lines, the gateway as a
//! process of its own, and clients for HTTP/1.1 and HTTP/2. Nothing here uses the product's code.

pub mod client;
pub mod corpus;
pub mod frames;
pub mod gateway;
pub mod load;
pub mod mount;
pub mod names;
pub mod neighbours;
pub mod pki;
pub mod prometheus;
pub mod replies;
pub mod stand_in;
pub mod street;
pub mod tools;
pub mod unprivileged;
pub mod upstream;
pub mod wire;

pub use client::Answer;
pub use client::Client;
pub use gateway::Gateway;
pub use gateway::Setup;
pub use load::Load;
pub use pki::Pki;
pub use upstream::Upstream;
