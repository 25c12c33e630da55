use std::time::SystemTime;

use crescendo_proto::v1;
use crescendo_proto::v1::access_service_server::AccessService;
use tonic::{Request, Response, Status};

use crate::access::caller_of;
use crate::leadership::{EngineHandle, Role};

/// Tells callers who they are to this controller.
pub struct Callers {
    engine: EngineHandle,
    object_store_url: String,
}

impl Callers {
    pub fn new(engine: EngineHandle, object_store_url: String) -> Self {
        Self { engine, object_store_url }
    }
}

#[tonic::async_trait]
impl AccessService for Callers {
    async fn who_am_i(
        &self,
        request: Request<v1::WhoAmIRequest>,
    ) -> Result<Response<v1::WhoAmIResponse>, Status> {
        let caller = caller_of(&request)?;
        let (leads, leader) = match self.engine.role() {
            Role::Leading { .. } => (true, String::new()),
            Role::Standby { leader, .. } => (false, leader.unwrap_or_default()),
        };
        Ok(Response::new(v1::WhoAmIResponse {
            name: caller.name,
            role: caller.role.to_string(),
            tenant: caller.tenant.map(|tenant| tenant.to_string()).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            leads,
            leader,
            at: Some(SystemTime::now().into()),
            object_store_url: self.object_store_url.clone(),
        }))
    }
}
