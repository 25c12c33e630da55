use std::time::SystemTime;

use crescendo_proto::v1;
use crescendo_proto::v1::access_service_server::AccessService;
use tonic::{Request, Response, Status};

use crate::leadership::{Link, Role};

/// Tells callers who they are to this controller.
pub struct Access {
    link: Link,
    object_store_url: String,
}

impl Access {
    pub fn new(link: Link, object_store_url: String) -> Self {
        Self { link, object_store_url }
    }
}

#[tonic::async_trait]
impl AccessService for Access {
    async fn who_am_i(
        &self,
        _: Request<v1::WhoAmIRequest>,
    ) -> Result<Response<v1::WhoAmIResponse>, Status> {
        let (leads, leader) = match self.link.role() {
            Role::Leading { .. } => (true, String::new()),
            Role::Standby { leader } => (false, leader.unwrap_or_default()),
        };
        Ok(Response::new(v1::WhoAmIResponse {
            name: String::new(),
            role: "admin".to_owned(),
            tenant: String::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            leads,
            leader,
            at: Some(SystemTime::now().into()),
            object_store_url: self.object_store_url.clone(),
        }))
    }
}
