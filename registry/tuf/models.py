"""The table of TUF metadata: each version of each role, as the bytes that were signed."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from ..models import Base


class TufMetadata(Base):
    """A version of a role. The current one has no `superseded_at`; of root every version stays for ever."""

    __tablename__ = "tuf_metadata"
    __table_args__ = (Index("tuf_current", "role", "superseded_at"),)
    role: Mapped[str] = mapped_column(String(120), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[bytes] = mapped_column(LargeBinary)
    expires: Mapped[datetime]
    created_at: Mapped[datetime]
    superseded_at: Mapped[datetime | None]
